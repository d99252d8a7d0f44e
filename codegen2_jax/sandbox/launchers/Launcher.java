import java.io.File;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.ArrayList;
import java.util.List;
import javax.tools.JavaCompiler;
import javax.tools.ToolProvider;

/**
 * Compiles a solution with its tests behind it, runs the tests' method, which the argument names, and says how it ended,
 * behind a token that the program does not know: it is read before the program is loaded and kept in a local variable.
 */
public class Launcher {
    public static void main(String[] arguments) throws Exception {
        byte[] bytes = new byte[32];
        if (System.in.readNBytes(bytes, 0, 32) != 32) {
            System.exit(70);
        }
        String token = new String(bytes, "US-ASCII");
        PrintStream out = System.out;
        System.setIn(java.io.InputStream.nullInputStream());
        File folder = new File("classes");
        folder.mkdir();
        String source = null;
        for (String name : new File(".").list()) {
            if (name.endsWith(".java") && !name.equals("Launcher.java")) {
                source = name;
            }
        }
        java.io.ByteArrayOutputStream said = new java.io.ByteArrayOutputStream();
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        String[] options = {"-nowarn", "-proc:none", "-d", folder.getPath(), source};
        if (compiler.run(null, said, said, options) != 0) {
            say(out, token, "compile " + said.toString("UTF-8"), 1);
        }
        ClassLoader loader = new URLClassLoader(new URL[] {folder.toURI().toURL()});
        loader.setDefaultAssertionStatus(true);
        String kind = "passed";
        try {
            Method main = entry(loader, folder, arguments.length == 0 ? "main" : arguments[0]);
            if (main == null) {
                say(out, token, "compile there is not exactly one class with a main method", 1);
            }
            main.setAccessible(true);
            main.invoke(null, (Object) new String[0]);
        } catch (InvocationTargetException wrapped) {
            kind = kindOf(wrapped.getCause());
        } catch (Throwable error) {
            kind = kindOf(error);
        }
        say(out, token, kind, kind.equals("passed") ? 0 : 1);
    }

    /** The one method of that name: where there are several, another class's would run in the place of the tests. */
    private static Method entry(ClassLoader loader, File folder, String method) throws Exception {
        List<Method> found = new ArrayList<>();
        for (String name : folder.list()) {
            if (name.endsWith(".class")) {
                try {
                    Class<?> one = Class.forName(name.substring(0, name.length() - 6), false, loader);
                    found.add(one.getDeclaredMethod(method, String[].class));
                } catch (NoSuchMethodException error) {
                    continue;
                }
            }
        }
        return found.size() == 1 ? found.get(0) : null;
    }

    private static String kindOf(Throwable error) {
        String kind = "error";
        if (error instanceof OutOfMemoryError) {
            kind = "memory";
        } else if (error instanceof AssertionError) {
            kind = "failed";
        }
        return kind + " " + error;
    }

    private static void say(PrintStream out, String token, String text, int code) {
        System.out.flush();
        out.print("\n" + token + " " + text + "\n");
        out.flush();
        Runtime.getRuntime().halt(code);
    }
}

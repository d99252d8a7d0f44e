using System;
using System.IO;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;

/// Compiles and runs a solution with its tests behind it, and says how it ended, behind a token that the program does not
/// know: it is read before the program is loaded and kept in a local variable. The argument is the compiler's assembly.
public static class Launcher {
    [DllImport("libc")]
    static extern void _exit(int code);

    public static void Main(string[] arguments) {
        var bytes = new byte[33];
        using (Stream input = Console.OpenStandardInput()) {
            for (int got = 0, more = 1; got < bytes.Length && more > 0; got += more) {
                more = input.Read(bytes, got, bytes.Length - got);
            }
        }
        string token = Encoding.ASCII.GetString(bytes).Trim();
        Stream output = Console.OpenStandardOutput();
        Console.SetIn(TextReader.Null);
        string kind = "passed";
        try {
            var said = new StringWriter();
            string[] options = {
                "-nologo", "-warn:0", "-define:DEBUG", "-target:exe", "-out:program.exe", "-reference:System.Numerics",
                "Debug.cs", "Program.cs",
            };
            Type compiler = Assembly.LoadFrom(arguments[0]).GetType("Mono.CSharp.CompilerCallableEntryPoint", true);
            MethodInfo compile = compiler.GetMethod("InvokeCompiler");
            if (!(bool) compile.Invoke(null, new object[] { options, said })) {
                Say(output, token, "compile " + said.ToString().Trim(), 1);
            }
            MethodInfo main = Assembly.LoadFrom(Path.GetFullPath("program.exe")).EntryPoint;
            main.Invoke(null, main.GetParameters().Length == 0 ? null : new object[] { new string[0] });
        } catch (TargetInvocationException wrapped) {
            kind = KindOf(wrapped.InnerException);
        } catch (Exception error) {
            kind = KindOf(error);
        }
        Say(output, token, kind, kind == "passed" ? 0 : 1);
    }

    static string KindOf(Exception error) {
        if (error is TypeInitializationException && error.InnerException != null) {
            return KindOf(error.InnerException);
        }
        string kind = "error";
        if (error is OutOfMemoryException) {
            kind = "memory";
        } else if (error.GetType().FullName == "System.Diagnostics.AssertionFailed") {
            kind = "failed";
        }
        return kind + " " + error.GetType().Name + ": " + error.Message;
    }

    static void Say(Stream output, string token, string text, int code) {
        Console.Out.Flush();
        byte[] line = Encoding.UTF8.GetBytes("\n" + token + " " + text + "\n");
        output.Write(line, 0, line.Length);
        output.Flush();
        _exit(code);
    }
}
